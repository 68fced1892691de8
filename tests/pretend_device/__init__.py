"""A pretend accelerator: tensors that report `cuda:0` or `mps:0` and hold their numbers on the CPU.

It shows, on a machine without a GPU: a CPU tensor that meets one of the device (an error, as on a GPU), float64 on MPS
(an error), each time that the host waits for the device, with the line of nanokimi that waits, kernel launches, and the
path that torch would take for attention and grouped products at a compute capability. It cannot show the numbers of a
GPU's kernels, their speed, or memory that runs out. Where a real GPU disagrees, the GPU is right.

    python tests/pretend_device/run.py --device cuda --capability 8,0 script.py arguments...
    python tests/pretend_device/run.py --device mps -m nanokimi train --data text.txt

It must stand before torch is imported, so it is another process. Its own subprocesses have the pretend device, too.
Within such a process, `from pretend_device.counts import COUNTS` counts.
"""
