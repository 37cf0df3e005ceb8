"""The operators in Triton; this package needs triton. `hgrn2.api` and `hgrn2.api_gla` call five of
its modules:

ops         HGRN2 for autograd: `chunks` launches `states`, `output`, `backward_value`,
            `backward_gate`, and for closed gates `deep` and `deep_backward` (`spans`)
gla_ops     gated linear attention on the same kernels, with a key of its own (`keys`)
projected   HGRN2 on a layer's projection, whose gradient `into` says where to write
narrow      HGRN2 with few keys, on the diagonal scan (`scan_heads`)
scan_ops    HGRN1 for autograd: `scan` launches `scan_walk` and `scan_backward` (`scan_rows`)

`operators` makes what autograd and torch.compile see of all but `projected` and the steps. `decode`
is HGRN2's and GLA's step. All of them share `gate`, `settings` (`scan_settings`) and `first_call`.
"""
