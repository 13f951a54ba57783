"""What a training run stands on: emulator, run folder, logs, devices, evaluation, storage. Nothing here learns or prunes."""
