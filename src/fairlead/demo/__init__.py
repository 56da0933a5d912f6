# SPDX-License-Identifier: Apache-2.0
"""What ``fairlead demo`` puts around the load balancer: real servers, a client, a picture."""
