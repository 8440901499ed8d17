"""One module for each kind of model server: how it is asked, how its answer is read, and what its errors mean."""
