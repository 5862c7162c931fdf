"""The sharp subspace: the leading eigenvectors of a spectrum, wherever k × N numbers have room."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.errors import InputError, UsageError
from lite_probe.results.arrays import give_back
from lite_probe.results.provenance import Note
from lite_probe.results.spectrum import Spectrum
from lite_probe.runtime.memory import free_memory
from lite_probe.task import Task
from lite_probe.vectors.reductions import CHUNK, dot, project

_SHARE_OF_FREE_MEMORY = 0.25  # of a device, that a subspace may take unasked
_STRETCH = 64 * CHUNK  # entries of each vector that are read from a file at a time


class Subspace:
    """The span of k orthonormal vectors of length N, the flat subspace its complement, which is never built.

    Vectors are contiguous rows in memory, or columns of a mapped file. In bfloat16 they are orthonormal to 4e-3 only:
    all that is said of the span then refers to the orthonormal basis VG^(-½) nearest to them, G = VᵀV (Löwdin 1950),
    so that `component` is an orthogonal projector and squared coefficients add up to its energy all the same.

    Args:
        rows: (k, N) in memory, float32, float64 or bfloat16.
        mapped: (N, ·) of the spectrum itself, mapped from its file where it is large, in place of `rows`.
        columns: (k,) which of its columns.
        eigenvalues: (k,) their curvatures, descending.
        residual_norms: (k,) ‖Hv − λv‖ of each.
        notes: What a reader should know of how they are kept.
    """

    def __init__(
        self,
        rows: Tensor | None = None,
        *,
        mapped: NDArray[np.float32] | None = None,
        columns: NDArray[np.intp] | None = None,
        eigenvalues: NDArray[np.float64],
        residual_norms: NDArray[np.float64],
        notes: tuple[Note, ...] = (),
    ) -> None:
        if (rows is None) == (mapped is None):
            raise ValueError("expected vectors either in memory or mapped")
        self._rows = rows
        self._mapped = mapped
        self._columns = np.arange(len(eigenvalues)) if columns is None else columns
        self.eigenvalues = eigenvalues
        self.residual_norms = residual_norms
        self.notes = notes
        self._whitening: Tensor | None = None  # G^(-½), (k, k) float64; None where G = I to float32's rounding
        if rows is not None and rows.dtype == torch.bfloat16:
            gram = [self._inner(self.vector(index).double().unsqueeze(0))[:, 0] for index in range(self.size)]
            values, vectors = torch.linalg.eigh(torch.stack(gram, dim=1))
            self._whitening = (vectors * values.rsqrt()) @ vectors.T

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
        chosen = np.arange(count)
        return cls._stored(spectrum.eigenvectors, chosen, whole.eigenvalues, whole.residual_norms, task, dtype, memory)

    @classmethod
    def of_pairs(cls, spectrum: Spectrum, task: Task, *, memory: int | None = None) -> "Subspace":
        """Take all converged pairs, of both ends: what is taken out of H exactly, so that no probe has to see it.

        Args:
            spectrum: With eigenvectors, at least one of them converged.
            task: On whose device they will be used.
            memory: As for `of_spectrum`.
        """
        whole = spectrum.whole
        if spectrum.eigenvectors is None:
            raise InputError("expected a spectrum with eigenvectors, got one without", "measure it again with --fresh")
        chosen = np.flatnonzero(np.append(whole.converged, whole.lower_converged))
        values = np.append(whole.eigenvalues, whole.lower_eigenvalues)
        residuals = np.append(whole.residual_norms, whole.lower_residual_norms)
        return cls._stored(spectrum.eigenvectors, chosen, values, residuals, task, torch.float32, memory)

    @classmethod
    def _stored(
        cls,
        columns: NDArray[np.float32],
        chosen: NDArray[np.intp],
        values: NDArray[np.float64],
        residuals: NDArray[np.float64],
        task: Task,
        dtype: torch.dtype,
        memory: int | None,
    ) -> "Subspace":
        """Put the chosen columns where they have room."""
        length, count = columns.shape[0], len(chosen)
        needed = length * count * dtype.itemsize
        values, residuals = values[chosen], residuals[chosen]
        place = _place(needed, task.device, memory)
        if place is None:
            notes = []
            if isinstance(columns, np.memmap):
                message = f"{count} eigenvectors take {needed / 2**30:.1f} GiB and are read from the spectrum's file."
                notes.append(Note(code="subspace-on-disk", message=message))
            return cls(mapped=columns, columns=chosen, eigenvalues=values, residual_norms=residuals, notes=tuple(notes))
        rows = torch.empty(count, length, dtype=dtype, device=place)
        for start in range(0, length, _STRETCH):
            part = np.ascontiguousarray(columns[start : start + _STRETCH, chosen].T)
            rows[:, start : start + _STRETCH].copy_(torch.from_numpy(part))
            give_back(columns)
        notes = []
        if place != task.device:
            notes.append(Note(code="subspace-on-cpu", message="Eigenvectors are in main memory, not on the GPU."))
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
        return self._rows.shape[1] if self._rows is not None else self._file.shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory that the vectors take."""
        return self._rows.nbytes if self._rows is not None else 0

    @property
    def relative_residual(self) -> float:
        """The largest ‖Hv − λv‖/|λ|: how well the vectors are known."""
        return float(np.max(self.residual_norms / np.abs(self.eigenvalues)))

    def vector(self, index: int) -> Tensor:
        """Return one of the vectors as it is stored, (N,), float32 unless it is kept in float64."""
        if self._rows is None:
            column = self._file[:, self._columns[index]]
            vector = torch.empty(len(column), dtype=torch.from_numpy(column[:0].copy()).dtype)
            for start in range(0, len(column), _STRETCH):  # a column touches every page of the file
                vector.numpy()[start : start + _STRETCH] = column[start : start + _STRETCH]
                give_back(self._file)
            return vector
        row = self._rows[index]
        return row.float() if row.dtype == torch.bfloat16 else row

    def stacked(self) -> NDArray[np.float32]:
        """Return all vectors, (k, N) on the CPU; those in its memory as they are, to be read."""
        if self._rows is None:
            rows, are_all = self._file.T, np.array_equal(self._columns, np.arange(self._file.shape[1]))
            return np.ascontiguousarray(rows if are_all else rows[self._columns])
        found: NDArray[np.float32] = self._rows.float().cpu().numpy()
        return found

    def coefficients(self, vectors: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the coefficients Vᵀx of some vectors' parts in the subspace, (b, N), or b of (N,) → (k, b) float64.

        Cost: one pass over the subspace.
        """
        return self._whitened(self._inner(vectors))

    def combine(self, coefficients: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return Vc for coefficients c, (k,) → (N,) of the given type, on the given device. Cost: one pass."""
        weights = self._whitened(coefficients.unsqueeze(1))[:, 0].to(dtype)
        result = torch.empty(self.num_parameters, dtype=dtype, device=device)
        for part, rows in self._stretches(dtype):
            result[part] = (weights.to(rows.device) @ rows).to(device)
        return result

    def component(self, vector: Tensor) -> Tensor:
        """Return VVᵀx, the part of a vector in the subspace, (N,) → (N,). Cost: two passes."""
        return self.combine(self.coefficients(vector.unsqueeze(0))[:, 0], vector.dtype, vector.device)

    def energy_share(self, vector: Tensor) -> float:
        """Return ‖VVᵀx‖²/‖x‖², in [0, 1]; 0 for x = 0. Cost: one pass."""
        total = dot(vector, vector)
        energy = float(self.coefficients(vector.unsqueeze(0)).square().sum())
        return min(energy / total, 1.0) if total > 0.0 else 0.0

    def _whitened(self, inner: Tensor) -> Tensor:
        return inner if self._whitening is None else self._whitening.to(inner.device) @ inner

    def _inner(self, vectors: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the inner products with the stored vectors, as `coefficients`, accumulated in float64."""
        several = [vectors] if isinstance(vectors, Tensor) else [vector.unsqueeze(0) for vector in vectors]
        total = torch.zeros(self.size, len(vectors), dtype=torch.float64, device=several[0].device)
        for part, rows in self._stretches(several[0].dtype):
            found = [project(rows, some[:, part].to(rows.device)) for some in several]
            total += torch.cat(found, dim=1).to(total.device)
        return total

    def _stretches(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield the vectors stretch by stretch as rows of the given type."""
        width = _STRETCH if self._rows is None or self._rows.dtype != dtype else self.num_parameters
        for start in range(0, self.num_parameters, width):
            part = slice(start, min(start + width, self.num_parameters))
            if self._rows is not None:
                yield part, self._rows[:, part].to(dtype)
            else:
                yield part, torch.from_numpy(self._file[part][:, self._columns].T).contiguous().to(dtype)
                give_back(self._file)

    @property
    def _file(self) -> NDArray[np.float32]:
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
    columns = [first.coefficients(second.vector(index).unsqueeze(0))[:, 0] for index in range(second.size)]
    crossed = second._whitened(torch.stack(columns).cpu())
    cosines = torch.linalg.svdvals(crossed).numpy()
    return np.sort(np.arccos(np.clip(cosines, 0.0, 1.0)))


def _place(needed: int, device: torch.device, memory: int | None) -> torch.device | None:
    """Return where a subspace goes; None where it stays on disk."""
    for candidate in dict.fromkeys((device, torch.device("cpu"))):
        allowed = int(_SHARE_OF_FREE_MEMORY * free_memory(candidate)) if memory is None else memory
        if needed <= allowed:
            return candidate
    return None
