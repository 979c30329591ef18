"""An OpenAI-compatible server: requests join a running batch, stream what they get, and leave."""
