"""
From a model to a service
=========================

A tied model is an ordinary PyTorch module. This page exports one, runs it in ONNX Runtime without
PyTorch, and puts it behind a small web service that a client then asks.
"""

# %%
# A model
# -------
# Trained or not makes no difference here. It takes signals on twelve nodes, and the graph is a
# part of it: that never changes.

import logging
import tempfile
import threading
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import gsym

torch.manual_seed(0)
ring = torch.tensor([[i, (i + 1) % 12] for i in range(12)]).T
ring = torch.cat([ring, ring.flip(0)], dim=1)
group = gsym.ClusterGroup(gsym.Partition.from_labels([0] * 4 + [1] * 4 + [2] * 4))


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = gsym.nn.GNet([2, 16, 1], group)
        self.register_buffer("edge_index", ring)

    def forward(self, x):
        return self.net(x, self.edge_index)


model = Forecaster().eval()
signals = torch.randn(5, 12, 2)
with torch.no_grad():
    answer = model(signals)
print(tuple(signals.shape), "to", tuple(answer.shape))

# %%
# Export
# ------
# ``torch.export`` writes the program down for any size of the batch. It holds operators of PyTorch
# alone, so whoever runs it needs no gsym.

batch = torch.export.Dim("batch")
program = torch.export.export(model, (signals,), dynamic_shapes=({0: batch},))
plain = program.run_decompositions()
operators = {str(node.target) for node in plain.graph.nodes if node.op == "call_function"}
print(f"{len(operators)} operators, of gsym: {sum('gsym' in name for name in operators)}")
folder = Path(tempfile.mkdtemp())
torch.export.save(program, folder / "model.pt2")
again = torch.export.load(folder / "model.pt2").module()
print("same answer after loading:", torch.allclose(again(signals), answer, atol=1e-6))

# %%
# ONNX Runtime
# ------------
# The same program as ONNX, for servers, phones and browsers.

import onnxruntime

logging.disable(logging.WARNING)  # the exporter talks a lot
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.onnx.export(program, dynamo=True, verbose=False).save(folder / "model.onnx")
logging.disable(logging.NOTSET)
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
given = session.get_inputs()[0].name
(found,) = session.run(None, {given: signals.numpy()})
size = (folder / "model.onnx").stat().st_size / 1024
print(f"{size:.0f} KiB, largest difference {np.abs(found - answer.numpy()).max():.0e}")

# %%
# Every answer of both, one against the other, for a batch of another size:

more = torch.randn(40, 12, 2)
(theirs,) = session.run(None, {given: more.numpy()})
with torch.no_grad():
    ours = model(more).numpy()
figure, axes = plt.subplots(figsize=(4, 3.6), layout="constrained")
axes.plot(ours.ravel(), theirs.ravel(), ".", ms=3)
axes.axline((0, 0), slope=1, color="0.7", zorder=0)
axes.set(xlabel="PyTorch", ylabel="ONNX Runtime", aspect="equal")
plt.show()
assert np.allclose(ours, theirs, atol=1e-5)

# %%
# A service
# ---------
# FastAPI checks what comes in. A signal of the wrong shape is refused with a reason, as gsym does.

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException

service = FastAPI()


@service.post("/predict")
def predict(signals: list[list[list[float]]]) -> list[list[list[float]]]:
    """Signals [batch, 12, 2] to forecasts [batch, 12, 1]."""
    try:
        x = np.array(signals, dtype=np.float32)
    except ValueError as ragged:
        raise HTTPException(422, "expected numbers [batch, 12, 2], got ragged rows") from ragged
    if x.ndim != 3 or x.shape[1:] != (12, 2):
        raise HTTPException(422, f"expected numbers [batch, 12, 2], got {list(x.shape)}")
    return session.run(None, {given: x})[0].tolist()


server = uvicorn.Server(uvicorn.Config(service, host="127.0.0.1", port=0, log_level="error"))
thread = threading.Thread(target=server.run, daemon=True)
thread.start()
while not server.started:
    time.sleep(0.01)
port = server.servers[0].sockets[0].getsockname()[1]

# %%
# A client asks it, over a socket, as another machine would.

with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
    reply = client.post("/predict", json=signals.tolist())
    print(reply.status_code, "right:", np.allclose(reply.json(), answer.numpy(), atol=1e-5))
    wrong = client.post("/predict", json=signals[:, :11].tolist())
    print(wrong.status_code, wrong.json()["detail"])
    waits = []
    for _ in range(100):
        start = time.perf_counter()
        client.post("/predict", json=signals[:1].tolist())
        waits.append(1000 * (time.perf_counter() - start))
server.should_exit = True
thread.join()

# %%
# How long a client waits depends on the machine that built this page, and on what else it did.

figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
axes.hist(waits, bins=30)
axes.set(xlabel="milliseconds per request", ylabel="requests")
plt.show()

assert reply.status_code == 200 and wrong.status_code == 422
