"""No test asks the Hub: a name that is not here is refused at once, not after five attempts."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
