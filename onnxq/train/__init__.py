"""What any trained network needs: loop, optimizer, checkpoint, loss, targets, augmentation."""
