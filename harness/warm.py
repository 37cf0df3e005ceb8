"""What a GPU worker would do at its first call, done once in the server that it is forked from.

torch's custom operators and optimizers import `torch._dynamo` when first called, and Triton hashes
its own shared library: two to three seconds of every fresh process, which no kernel needs. Nothing
here touches a GPU. Without triton or without a GPU there is nothing of that to do.
"""

import os
import threading
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

if find_spec("tqdm"):
    # torch's compiler makes a bar, hidden or not, whose class makes a lock among processes unless
    # it has one: nobody gives that back when a worker ends, and Python warns of it.
    import_module("tqdm").tqdm.set_lock(threading.RLock())

if Path("/dev/nvidiactl").exists() and find_spec("triton"):
    # Should an import ask for a GPU, torch answers without CUDA, which no fork could use then.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import_module("torch._dynamo")
    cache = import_module("triton.runtime.cache")
    # Private to Triton: a version without it hashes at the first call.
    if hasattr(cache, "triton_key"):
        cache.triton_key()
