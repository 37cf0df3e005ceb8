"""Multi-query associative recall. `mqar_batch` needs torch alone; the task is in `mqar.task`."""

from tasks.mqar.data import UNLABELLED, check_mqar, mqar_batch

__all__ = ["UNLABELLED", "check_mqar", "mqar_batch"]
