"""`chorus evaluate` with `policies`: what any policies write for any people on any prompts, judged and compared."""
