"""Reads a folder of event files as TensorBoard does and prints what it finds as JSON: for each scalar its steps and values."""
import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
scalars = {tag: [[point.step, point.value] for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
print(json.dumps(scalars))
