"""The method as pure functions of tensors: simplex, scalarization, pairing, loss, logps."""
