"""What the commands for volumes need besides the client: templates of output, and the helpers of mount and umount."""
