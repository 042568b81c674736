"""What a model can do, in numbers with their intervals: suites of questions, put to a model here or to a server."""
