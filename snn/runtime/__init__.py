"""What every command and file of the project stands on; knows nothing of spikes."""
