"""What a CT is: volume, windows, regions, cubes, targets, lungs, phantom."""
