# SPDX-License-Identifier: MIT
"""Running the trained hybrid forward: single runs and ensembles."""
