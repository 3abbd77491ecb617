"""Command lines and training code of the headless module MITSGANTraining."""
