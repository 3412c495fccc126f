"""What every room shares: conventions, cameras, geometry, configs, seeds, console."""
