"""Weigh forget and retain gradients: exact Nash bargaining (MUNBa), PCGrad, CAGrad, for every gradient method."""
