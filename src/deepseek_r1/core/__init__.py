"""The ground floor: errors, registry, environment and logging. Standard library only."""
