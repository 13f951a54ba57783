"""What a training run stands on: emulator, run folder, logs, devices, evaluation, health, storage.

Nothing here learns, or chooses what to prune.
"""
