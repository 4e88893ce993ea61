"""
Your own task in the suite
==========================

The suite runs every group on a task, with several seeds, baselines and intervals, and writes a
report. A task of yours is one class: it says what the data are and what is measured; training,
resuming and tables are the engine's.
"""

# %%
# A class that says what
# ----------------------
# Twelve thermometers on three floors. Each reads its floor's temperature with an error; the task
# is to say what the temperature at each one is. Thermometers of one floor may be exchanged.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from torch import nn

from gsym import ClusterGroup, Partition
from gsym.nn import OrbitLinear
from gsym_bench.suite.report.markdown import write_report
from gsym_bench.suite.run import run
from gsym_bench.suite.task import Problem, Schedule, Split, Task

FLOOR = torch.arange(12) // 4


class Thermometers(Task):
    name = "thermometers"
    title = "Thermometers on three floors"
    metric = "MAE"
    unit = "degrees"
    model_name = "OrbitLinear"

    def load(self, data, profile, seed):
        generator = torch.Generator().manual_seed(seed)

        def draw(count):
            floors = 3 * torch.randn(count, 3, 1, generator=generator)
            truth = floors[:, FLOOR] + 0.3 * torch.randn(count, 12, 1, generator=generator)
            return Split(truth + torch.randn(count, 12, 1, generator=generator), truth)

        return Problem(
            dataset="simulated",
            train=draw(25),
            val=draw(100),
            test=draw(1000),
            edge_index=torch.tensor([[i, i + 1] for i in range(11)]).T,
            positions=torch.stack([torch.arange(12) % 4, FLOOR], dim=1).float(),
            groups={
                "S_12": ClusterGroup(Partition.single(12)),
                "floors": ClusterGroup(Partition(FLOOR)),
                "trivial": ClusterGroup(Partition.singletons(12)),
            },
            truth="floors",
        )

    def schedule(self, profile, data):
        return Schedule(epochs=150, lr=0.1)

    def model(self, problem, group, profile):
        return OrbitLinear(1, 1, problem.groups[group])

    def loss(self, prediction, batch):
        return nn.functional.mse_loss(prediction, batch.targets)

    def metrics(self, prediction, split, problem):
        return {"MAE": (prediction - split.targets).abs().mean().item()}

    def baselines(self):
        def average(problem):
            def predict(split):
                floors = torch.stack([split.inputs[:, f == FLOOR].mean(1) for f in range(3)], dim=1)
                return floors[:, FLOOR]

            return predict

        return {"as read": lambda problem: lambda split: split.inputs, "mean of the floor": average}


# %%
# Run it
# ------
# In a file of its own, with ``@register`` before the class, it is run by ``gsym-bench run --task
# FILE``. Here we call the engine. What is finished is not run again, so a run that was stopped
# goes on.

out = Path(tempfile.mkdtemp())
rows = run([Thermometers()], out=out, seeds=2, device="cpu", console=Console(quiet=True))
page = write_report(out)
print(f"{len(rows)} cells: groups and baselines, times seeds")

# %%
# What came of it
# ---------------
# The group is selected by validation; the test split is looked at once, after that.

text = page.read_text()
table = [line for line in text.splitlines() if line.startswith("|")]
for line in table:
    print("".join(cell.strip()[:18].ljust(19) for cell in line.split("|")[1:8]))
print(next(line for line in text.splitlines() if line.startswith("Validation selects")))

# %%
# The report has pictures, too. This is the error of every group:


def show(picture):
    shown = plt.imread(picture)
    figure = plt.figure(figsize=(7, 7 * shown.shape[0] / shown.shape[1]))
    axes = figure.add_axes([0, 0, 1, 1])
    axes.imshow(shown)
    axes.axis("off")
    plt.show()


show(next(out.glob("*_error.png")))

# %%
# And these are the groups, on the graph:

show(next(out.glob("*_graph.png")))

assert "Validation selects **floors**" in text
