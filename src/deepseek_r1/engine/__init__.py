"""The engine: request states, paged KV, prefix cache, scheduler, runner, sampler. Token ids in, token ids out."""
