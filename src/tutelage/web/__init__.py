"""The service and the console: OpenAI-compatible gateway, pages for people, one application on one port."""
