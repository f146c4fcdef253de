"""What a plugin is to permllm: where it comes from, what it needs, what it adds.

The registry puts these together; nothing here imports torch.
"""
