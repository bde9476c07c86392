PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA user_version = 4;
BEGIN TRANSACTION;
CREATE TABLE images (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        media_type TEXT NOT NULL,
        metadata TEXT NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (job, number)
    );
INSERT INTO "images" VALUES('done',1,'image/png','{"seed":7,"width":640,"height":512,"num_inference_steps":8,"forwards":8,"guidance_scale":0.0,"plan_id":"plan","precision":"fp16","flavor":"onnx","model":"nano","revised_prompt":"a cut prompt","text_tokens":12,"seconds":{"tokenize":0.0,"prompt_encoder":0.0,"vae_encoder":0.0,"passes":0.0,"denoiser":0.25,"vae_decoder":0.0,"encode":0.0},"lora":null,"lora_strength":null,"cfg_normalization":0.0,"cfg_truncation":1.0,"strength":null,"init_image":null}',X'7365636F6E64');
INSERT INTO "images" VALUES('done',0,'image/png','{"seed":7,"width":640,"height":512,"num_inference_steps":8,"forwards":8,"guidance_scale":0.0,"plan_id":"plan","precision":"fp16","flavor":"onnx","model":"nano","revised_prompt":"a cut prompt","text_tokens":12,"seconds":{"tokenize":0.0,"prompt_encoder":0.0,"vae_encoder":0.0,"passes":0.0,"denoiser":0.25,"vae_decoder":0.0,"encode":0.0},"lora":null,"lora_strength":null,"cfg_normalization":0.0,"cfg_truncation":1.0,"strength":null,"init_image":null}',X'6669727374');
CREATE TABLE init_images (
    job TEXT NOT NULL PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    unpacked_bytes INTEGER NOT NULL,
    data BLOB NOT NULL
);
INSERT INTO "init_images" VALUES('running',12288,X'785EEDC1311100200C04302421A11A3904FD525FB5D121C97F557D0F0000000000000000000000B05F325B39041C');
CREATE TABLE jobs (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        request TEXT NOT NULL,
        image_count INTEGER NOT NULL,
        format TEXT NOT NULL,
        api TEXT NOT NULL,
        owner TEXT,
        durable INTEGER NOT NULL,
        idempotency_key TEXT,
        fingerprint TEXT NOT NULL,
        created REAL NOT NULL,
        deadline REAL,
        state TEXT NOT NULL,
        started REAL,
        finished REAL,
        attempts INTEGER NOT NULL,
        error TEXT NOT NULL,
        bytes INTEGER NOT NULL DEFAULT 0, -- of an ended job, with its images
        CHECK ((finished IS NULL) = (state IN ('queued', 'running')))
    );
INSERT INTO "jobs" VALUES(1,'done','{"prompt":"a red circle","width":null,"height":null,"seed":0,"num_inference_steps":null,"negative_prompt":"","guidance_scale":null,"lora":null,"lora_strength":1.0,"cfg_normalization":0.0,"cfg_truncation":1.0,"edit":null}',2,'{"kind":"png","quality":100}','images','alice',1,'key','f',1000.0,NULL,'done',1001.0,1002.0,1,'null',1255);
INSERT INTO "jobs" VALUES(2,'failed','{"prompt":"a red circle","width":null,"height":null,"seed":0,"num_inference_steps":null,"negative_prompt":"","guidance_scale":null,"lora":null,"lora_strength":1.0,"cfg_normalization":0.0,"cfg_truncation":1.0,"edit":null}',1,'{"kind":"png","quality":100}','images',NULL,1,NULL,'f',1000.0,NULL,'failed',1003.0,1004.0,1,'{"code":"device_lost","message":"the GPU fell off the bus"}',1244);
INSERT INTO "jobs" VALUES(3,'cancelled','{"prompt":"a red circle","width":null,"height":null,"seed":0,"num_inference_steps":null,"negative_prompt":"","guidance_scale":null,"lora":null,"lora_strength":1.0,"cfg_normalization":0.0,"cfg_truncation":1.0,"edit":null}',1,'{"kind":"png","quality":100}','images',NULL,0,NULL,'f',1000.0,NULL,'cancelled',NULL,1005.0,0,'null',1244);
INSERT INTO "jobs" VALUES(4,'running','{"prompt":"a red circle","width":64,"height":64,"seed":0,"num_inference_steps":null,"negative_prompt":"","guidance_scale":null,"lora":"ink","lora_strength":1.0,"cfg_normalization":0.0,"cfg_truncation":1.0,"edit":{"strength":0.6,"image":"7048a5ca38f4f5ad8f1f77c3811e0ee3c07adcae5a1635896cffb21559a9ad12","is_inpainting":false}}',1,'{"kind":"png","quality":100}','images',NULL,1,NULL,'f',1000.0,9000.5,'running',1006.0,NULL,1,'null',0);
INSERT INTO "jobs" VALUES(5,'queued','{"prompt":"a red circle","width":null,"height":null,"seed":0,"num_inference_steps":null,"negative_prompt":"","guidance_scale":null,"lora":null,"lora_strength":1.0,"cfg_normalization":0.0,"cfg_truncation":1.0,"edit":null}',1,'{"kind":"png","quality":100}','images','bob',1,'key','f',1000.0,NULL,'queued',NULL,NULL,0,'null',0);
CREATE UNIQUE INDEX jobs_by_key ON jobs (idempotency_key, ifnull(owner, ''))
        WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_by_owner ON jobs (owner, sequence);
CREATE INDEX jobs_unfinished ON jobs (sequence) WHERE finished IS NULL;
CREATE INDEX jobs_ended ON jobs (finished) WHERE finished IS NOT NULL;
CREATE INDEX jobs_without_result ON jobs (finished, sequence, bytes, state)
        WHERE finished IS NOT NULL AND state <> 'done';
CREATE INDEX jobs_done ON jobs (owner, finished, sequence, bytes, state) WHERE state = 'done';
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',5);
COMMIT;
