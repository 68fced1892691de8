"""What a training step costs on this machine, measured or forecast: `nanokimi bench` and `train --dry-run`."""
