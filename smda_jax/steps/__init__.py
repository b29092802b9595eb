"""What a training step on a pair is: gradients in factored form, and what an update makes of
them."""
