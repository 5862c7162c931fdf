"""How long a step the loss tolerates: along bands of directions, along whole updates, in an optimizer's own norm."""
