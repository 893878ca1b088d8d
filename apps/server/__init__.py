"""An HTTP server with the interface of OpenAI's, for clients that know that one (docs/server.md)."""
