"""Names of the files that the guide's scripts leave."""

STAGE_1_BEST, STAGE_1_FINAL = "vision_bridge_best_val.pt", "vision_bridge_final.pt"
STAGE_2_BEST, STAGE_2_FINAL = "vision_bridge_vlm_best_val.pt", "vision_bridge_vlm_final.pt"
OVERNIGHT_BEST = "vision_bridge_overnight_best.pt"
STAGE_2_LOG, STAGE_2_CONFIG, STAGE_2_HEARTBEAT = "stage2_train_log.csv", "stage2_config.json", "stage2_heartbeat.txt"
STEP = "vision_bridge_step{}.pt"  # of a checkpoint between two epochs
