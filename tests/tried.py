"""A processor as plans see one, whose layers have been tried."""

from planning.devices import Device
from planning.trial import Curve, Trial

TRIAL = Trial(step=Curve(((1, 1e-3), (4, 2e-3))), seen=Curve(((1, 1e-7), (8, 8e-7))),
              read=Curve(((64, 4e-3), (256, 1e-2))), pair=1e-9, scores=Curve(((16, 1e-3),)), choice=Curve(((1, 2e-3),)))
CPU = Device("cpu", "processor", "cpu", 16e9, 40e9, {"fp32": 2e11, "bf16": 4e11}, 40e9, 40e9, "", TRIAL)
