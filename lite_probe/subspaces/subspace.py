"""The sharp subspace: the leading eigenvectors of a spectrum, wherever k × N numbers have room."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.errors import InputError, UsageError
from lite_probe.operators.reductions import CHUNK, dot, project
from lite_probe.results.provenance import Note
from lite_probe.results.spectrum import Spectrum
from lite_probe.spectra.memory import free_memory
from lite_probe.task import Task

_SHARE_OF_FREE_MEMORY = 0.25  # of a device, that a subspace may take unasked
_STRETCH = 64 * CHUNK  # entries of each vector that are read from a file at a time


class Subspace:
    """The span of k orthonormal vectors of length N, the flat subspace its complement, which is never built.

    Vectors are contiguous rows in memory, or columns of a mapped file. In bfloat16 they are orthonormal to 4e-3 only;
    the Gram matrix of what is stored then makes `component` the orthogonal projector on their span all the same.

    Args:
        rows: (k, N) in memory, float32, float64 or bfloat16.
        mapped: (N, k) on disk, in place of `rows`.
        eigenvalues: (k,) their curvatures, descending.
        residual_norms: (k,) ‖Hv − λv‖ of each.
        notes: What a reader should know of how they are kept.
    """

    def __init__(
        self,
        rows: Tensor | None = None,
        *,
        mapped: NDArray[np.float32] | None = None,
        eigenvalues: NDArray[np.float64],
        residual_norms: NDArray[np.float64],
        notes: tuple[Note, ...] = (),
    ) -> None:
        if (rows is None) == (mapped is None):
            raise ValueError("expected vectors either in memory or mapped")
        self._rows = rows
        self._mapped = mapped
        self.eigenvalues = eigenvalues
        self.residual_norms = residual_norms
        self.notes = notes
        self._gram: Tensor | None = None
        if rows is not None and rows.dtype == torch.bfloat16:
            self._gram = torch.stack([self._inner(self.vector(index).unsqueeze(0))[:, 0] for index in range(self.size)])

    @classmethod
    def of_spectrum(
        cls,
        spectrum: Spectrum,
        task: Task,
        *,
        size: int | None = None,
        dtype: torch.dtype = torch.float32,
        memory: int | None = None,
    ) -> "Subspace":
        """Take the leading eigenvectors that have converged and whose curvature is positive.

        They go to the task's device where they fit, else into main memory, else they stay in the spectrum's file.

        Args:
            spectrum: With eigenvectors.
            task: On whose device they will be used.
            size: k; None takes all there are.
            dtype: float32, or bfloat16 for half the memory.
            memory: Bytes that they may take; by default a quarter of what is free.

        Raises:
            InputError: If the spectrum has no eigenvectors, or none that is sharp and converged.
            UsageError: If it has fewer than `size` such.
        """
        if spectrum.eigenvectors is None:
            raise InputError("expected a spectrum with eigenvectors, got one without", "measure it again with --fresh")
        whole = spectrum.whole
        usable = np.append(whole.converged & (whole.eigenvalues > 0.0), False)
        available = int(np.argmin(usable))
        if available == 0:
            raise InputError(
                "expected converged eigenvectors of positive curvature, got none",
                "measure the spectrum with a larger --tol, or more --top",
            )
        count = available if size is None else size
        if not 1 <= count <= available:
            raise UsageError(
                f"expected a size of 1 to {available}, the converged pairs of positive curvature, got {size}",
                "measure the spectrum with more --top",
            )
        vectors = spectrum.eigenvectors[:, :count]
        needed = vectors.shape[0] * count * dtype.itemsize
        values, residuals = whole.eigenvalues[:count], whole.residual_norms[:count]
        place = _place(needed, task.device, memory)
        if place is None:
            message = f"The {count} sharp vectors take {needed / 2**30:.1f} GiB and are read from the spectrum's file."
            on_disk = (Note(code="subspace-on-disk", message=message),)
            return cls(mapped=vectors, eigenvalues=values, residual_norms=residuals, notes=on_disk)
        rows = torch.empty(count, vectors.shape[0], dtype=dtype, device=place)
        for start in range(0, vectors.shape[0], _STRETCH):
            part = np.ascontiguousarray(vectors[start : start + _STRETCH].T)
            rows[:, start : start + _STRETCH].copy_(torch.from_numpy(part))
        notes = []
        if place != task.device:
            notes.append(Note(code="subspace-on-cpu", message="The sharp vectors are in main memory, not on the GPU."))
        if dtype == torch.bfloat16:
            message = "The sharp vectors are kept in bfloat16: each is known to about 4e-3 of its length."
            notes.append(Note(code="subspace-in-bfloat16", message=message))
        return cls(rows, eigenvalues=values, residual_norms=residuals, notes=tuple(notes))

    @property
    def size(self) -> int:
        """Return k."""
        return len(self.eigenvalues)

    @property
    def num_parameters(self) -> int:
        """Return N."""
        return self._rows.shape[1] if self._rows is not None else self._mapped_columns.shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory that the vectors take."""
        return self._rows.nbytes if self._rows is not None else 0

    @property
    def relative_residual(self) -> float:
        """The largest ‖Hv − λv‖/|λ|: how well the vectors are known."""
        return float(np.max(self.residual_norms / np.abs(self.eigenvalues)))

    def vector(self, index: int) -> Tensor:
        """Return one of the vectors, (N,), float32 unless it is kept in float64."""
        if self._rows is None:
            return torch.from_numpy(np.ascontiguousarray(self._mapped_columns[:, index]))
        row = self._rows[index]
        return row.float() if row.dtype == torch.bfloat16 else row

    def coefficients(self, vectors: Tensor) -> Tensor:
        """Return the inner products with some vectors, (b, N) → (k, b) float64, accumulated in float64.

        For vectors in bfloat16 they are the coefficients of the projection, G⁻¹Vᵀx.

        Cost: one pass over the subspace.
        """
        inner = self._inner(vectors)
        return inner if self._gram is None else torch.linalg.solve(self._gram, inner)

    def component(self, vector: Tensor) -> Tensor:
        """Return VVᵀx, the part of a vector in the subspace, (N,) → (N,). Cost: two passes."""
        weights = self.coefficients(vector.unsqueeze(0))[:, 0].to(vector.dtype)
        result = torch.empty_like(vector)
        for part, rows in self._stretches(vector.dtype):
            result[part] = (weights.to(rows.device) @ rows).to(vector.device)
        return result

    def energy_share(self, vector: Tensor) -> float:
        """Return ‖VVᵀx‖²/‖x‖², in [0, 1]; 0 for x = 0."""
        total = dot(vector, vector)
        inner = self._inner(vector.unsqueeze(0))
        energy = float((inner * self.coefficients(vector.unsqueeze(0))).sum())
        return min(energy / total, 1.0) if total > 0.0 else 0.0

    def _inner(self, vectors: Tensor) -> Tensor:
        total = torch.zeros(self.size, len(vectors), dtype=torch.float64, device=vectors.device)
        for part, rows in self._stretches(vectors.dtype):
            total += project(rows, vectors[:, part].to(rows.device)).to(total.device)
        return total

    def _stretches(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield the vectors stretch by stretch as rows of the given type."""
        width = _STRETCH if self._rows is None or self._rows.dtype != dtype else self.num_parameters
        for start in range(0, self.num_parameters, width):
            part = slice(start, min(start + width, self.num_parameters))
            if self._rows is not None:
                yield part, self._rows[:, part].to(dtype)
            else:
                yield part, torch.from_numpy(np.array(self._mapped_columns[part].T)).to(dtype)

    @property
    def _mapped_columns(self) -> NDArray[np.float32]:
        if self._mapped is None:
            raise ValueError("expected mapped vectors, got some in memory")
        return self._mapped


def principal_angles(first: Subspace, second: Subspace) -> NDArray[np.float64]:
    """Measure how far two subspaces lean apart.

    cos θᵢ are the singular values of QᵀR; Q (N, k) and R (N, j) have orthonormal columns.

    Args:
        first: Q.
        second: R.

    Returns:
        (min(k, j),) radians, ascending.

    Raises:
        InputError: If they are of different numbers of parameters.

    Cost: j passes over the first; no hvp. Angles below 1e-3 are those of float32 vectors.
    Reference: Björck & Golub (1973), Math. Comp. 27.
    """
    if first.num_parameters != second.num_parameters:
        raise InputError(
            f"expected subspaces of the same parameters, got {first.num_parameters:,} and {second.num_parameters:,}",
            "compare checkpoints of one model",
        )
    columns = [first.coefficients(second.vector(index).unsqueeze(0))[:, 0].cpu() for index in range(second.size)]
    cosines = torch.linalg.svdvals(torch.stack(columns, dim=1)).numpy()
    return np.sort(np.arccos(np.clip(cosines, 0.0, 1.0)))


def _place(needed: int, device: torch.device, memory: int | None) -> torch.device | None:
    """Return where a subspace goes; None where it stays on disk."""
    for candidate in dict.fromkeys((device, torch.device("cpu"))):
        allowed = int(_SHARE_OF_FREE_MEMORY * free_memory(candidate)) if memory is None else memory
        if needed <= allowed:
            return candidate
    return None
