"""The code of docs/python.md, cell by cell; `python docs/python_api.py` runs it in seconds."""

# %% Import
import torch

import weight_loss

# %% Run an experiment
small = {"dataset": "digits", "epochs": 5, "retrain_epochs": 5, "rounds": 3}
run_id = weight_loss.run_experiment(**small, reinit="lottery")

# %% Load a network
network = weight_loss.load_network(run_id)  # the last round; round=0 is the dense network
print(network.round, network.class_names, network.metrics["test_accuracy"])

# %% Pixels in, names out
data = weight_loss.data_of(network)
pixels = data.test.images[:5] / data.test.view.white  # [5, 1, 8, 8], in [0, 1]
with torch.no_grad():
    probabilities = network.module(pixels).softmax(1)  # [5, 10]
for row in probabilities:
    print(network.class_names[int(row.argmax())], f"{row.max():.1%}")

# %% Masks and weights
for name, mask in network.masks.items():
    weight = network.module.network.get_parameter(name)
    print(name, tuple(mask.shape), f"{mask.float().mean():.1%} left")
    assert not weight[~mask].count_nonzero()

# %% Evaluate
score = weight_loss.evaluate(network, data.valid)
print(f"accuracy {score.accuracy:.1%}, loss {score.loss:.3f}")
wrong = (~score.correct).nonzero().flatten()  # rows of data.valid

# %% Compare two networks
dense = weight_loss.load_network(run_id, round=0)
difference = weight_loss.compare(dense, network, data.test)
print(
    f"{100 * difference.accuracy:+.1f} points, p = {difference.p_value:.2f}: "
    f"{difference.only_first} images only the dense network gets right, "
    f"{difference.only_second} only the pruned one"
)

# %% Rounds without MLflow
for other in weight_loss.prune_rounds(**small, reinit="random"):
    print(other.round, f"{other.metrics['sparsity']:.1%}", other.metrics["valid_accuracy"])
    if other.metrics["valid_accuracy"] < 0.5:
        break  # nothing more is trained

# %% Save, and load from a file
other.save("random.safetensors")
again = weight_loss.load_network("random.safetensors")
overlap = weight_loss.compare(network, again, data.test).mask_overlap
print({name: f"{share:.0%}" for name, share in overlap.items()})
