"""What training any network needs: loop, optimizer, checkpoint, loss, targets and augmentation."""
