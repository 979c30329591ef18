# ruff: noqa: F401
"""What processes that the tests fork have already: the programs, what these import when they come to need it, and the
hash of the code. Each would take a second for them, some of which live no longer."""

import matplotlib.backends.backend_svg
import matplotlib.figure
import numpy
import pytest
import rich.table
import scipy.special
import torch._dynamo

import commands.evaluate
import commands.generate
import evaluation.report
import evaluation.run
import evaluation.scorer
import glm.diagnose
import glm.loading
import kernels.cpu
import tools.converting.convert
import tools.pretrain
from evaluation.store import hash_code

hash_code()  # kept by its source
