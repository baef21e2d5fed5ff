"""The models of CFLD: what is trained, and the attention processor that carries it into the stock U-Net."""
