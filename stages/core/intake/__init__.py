"""What only validation uses: reading any folder of labelled images, and judging it."""
