"""The CT-GAN attacker (Mirsky et al., USENIX Security 2019), differentiable from output HU to input HU."""
