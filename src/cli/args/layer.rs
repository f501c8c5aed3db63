//! `kiln layer …`

use clap::{Args, Subcommand};

use super::Code;

const PUBLISH_HELP: &str = help!(
    "  kiln layer publish tools --dir tools/
  kiln layer publish lodash --zip lodash.zip --runtime nodejs22.x --description 'lodash 4.17'
  kiln function update hello --layer tools:1 --layer lodash:1

A layer is seen below /opt: its bin/ is on PATH, its lib/ on LD_LIBRARY_PATH, and Node finds nodejs/node_modules/, Python
python/. Each publishing makes a new version, which never changes.",
    json: "  As Lambda's PublishLayerVersion: LayerVersionArn, Version, Content, CreatedDate, …"
);

const LAYER_LIST_HELP: &str = help!(
    "  kiln layer list
  kiln layer list tools",
    json: "  Layers: a list of { LayerName, LayerArn, LatestMatchingVersion }; of one layer LayerVersions"
);

const LAYER_GET_HELP: &str = help!("  kiln layer get tools:1", json: "  As Lambda's GetLayerVersion");

const LAYER_DELETE_HELP: &str = help!(
    "  kiln layer delete tools:1     (functions that have it keep it)",
    json: "  Nothing: the exit code says it."
);

#[derive(Debug, Subcommand)]
pub enum LayerCommand {
    /// Delete one version of a layer; functions that have it keep it
    #[command(after_help = LAYER_DELETE_HELP)]
    Delete {
        /// NAME:VERSION or the version's ARN
        #[arg(value_name = "NAME:VERSION")]
        layer: String,
    },
    /// Show one version of a layer
    #[command(after_help = LAYER_GET_HELP)]
    Get {
        /// NAME:VERSION or the version's ARN
        #[arg(value_name = "NAME:VERSION")]
        layer: String,
    },
    /// Show all layers with their latest version, or all versions of one
    #[command(after_help = LAYER_LIST_HELP)]
    List {
        /// Name or ARN of one layer
        name: Option<String>,
    },
    /// Make the next version of a layer from a zip, a directory or one file
    #[command(after_help = PUBLISH_HELP)]
    Publish(Publish),
}

#[derive(Debug, Args)]
pub struct Publish {
    /// 1 to 140 of a-z, A-Z, 0-9, - and _
    pub name: String,
    #[command(flatten)]
    pub code: Code,
    /// What the layer holds
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Its licence: an SPDX name, an address, or the text
    #[arg(long, value_name = "TEXT")]
    pub license: Option<String>,
    /// A runtime that it is made for; give it once for each
    #[arg(long, value_name = "NAME")]
    pub runtime: Vec<String>,
    /// An architecture that it is made for: x86_64 or arm64
    #[arg(long, value_name = "NAME")]
    pub architecture: Vec<String>,
}
