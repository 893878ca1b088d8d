"""Model families: one file each; and the catalogue of models that `edgert pull` knows."""
