# SPDX-License-Identifier: Apache-2.0
"""``python -m fairlead``."""

from fairlead.app import main

if __name__ == "__main__":
    main()
