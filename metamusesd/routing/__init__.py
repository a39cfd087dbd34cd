"""What a prompt asks for: its domain, its level, and why it is believed. Pure, without a model call; any process."""
