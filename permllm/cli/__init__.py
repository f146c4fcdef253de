"""The command line ``permllm``: one file a command, thin over the Python API.

Nothing here imports torch when it is imported; the commands do, once they run.
"""
