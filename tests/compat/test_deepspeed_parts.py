"""DeepSpeed's private parts are what they were; tests/training/test_state.py and test_ema.py use them in earnest."""

from __future__ import annotations

import inspect

from upgrade import since

from raymed.compat import deepspeed as compat


def test_an_upgrade_of_deepspeed_left_its_shards_engines_and_partitions() -> None:
    import deepspeed.ops
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    with since(compat):
        assert len(compat.shard_classes()) == 3
        assert "self.checkpoint_engine.load(" in inspect.getsource(DeepSpeedEngine)
        first, third = (inspect.getsource(kind) for kind in (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3))
        assert all(
            hasattr(DeepSpeedZeroOptimizer, name) for name in ("_lazy_init_hp_params_optimizer_state", "update_lp_params")
        )
        assert "self.single_partition_of_fp32_groups" in first
        assert all(
            name in first for name in ("all_gather_dp_groups(groups_flat=", "self.average_tensor(", "dp_process_group")
        )
        parts = ("_partition_all_parameters", "_reassign_or_swap_out_partitioned_parameters", "set_local_hp_param")
        assert all(hasattr(DeepSpeedZeroOptimizer_Stage3, name) for name in parts)
        assert all(name in third for name in ("self.fp32_partitioned_groups_flat", "self.persistent_parameters"))
        assert all(name in inspect.getsource(inspect.getmodule(Init)) for name in ("ds_id", "ds_shape", "ds_tensor"))  # type: ignore[arg-type]
        assert isinstance(deepspeed.ops.__compatible_ops__, dict)
