"""Names for what several parts take."""

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Tokens = Float[Array, "batch tokens embed"]
Context = Float[Array, "batch sources context_embed"]
Features = Float[Array, "*shape width"]
Heads = Float[Array, "batch tokens heads head_dim"]
Mask = Bool[Array, "#batch #heads #tokens keys"] | None
Bias = Float[Array, "#batch #heads #tokens keys"] | None
Place = int | Int[Array, ""]
Key = PRNGKeyArray | None
