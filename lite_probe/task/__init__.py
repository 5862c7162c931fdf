"""A model, its loss and its batches; building one from a checkpoint and text, or from a user's file."""

from lite_probe.task.task import Batch, Criterion, Split, Task, TaskInfo

__all__ = ["Batch", "Criterion", "Split", "Task", "TaskInfo"]
