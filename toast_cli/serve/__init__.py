"""The server behind `toast serve`: the HTTP API of OpenAI for language models, with continuous batching."""
