"""Training, epoch by epoch, whatever a model is for: `task.py` says what a task has to bring."""
