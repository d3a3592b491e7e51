// What a dashboard with our kinds of panels is, by Grafana's own types. These leave options,
// custom fields and queries open; here they are those of each kind.
import type { AnnotationQuery, Dashboard, DataSourceRef, FieldConfigSource, Panel, RowPanel } from '@grafana/schema';
import type * as heatmap from './node_modules/@grafana/schema/dist/types/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as stat from './node_modules/@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as table from './node_modules/@grafana/schema/dist/types/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeseries from './node_modules/@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// JSON has the values of enumerations, not their members.
type Plain<T> = T extends string
  ? `${T}`
  : T extends number
    ? `${T}` extends `${infer N extends number}` ? N : number
    : T extends (infer Item)[]
      ? Plain<Item>[]
      : T extends object
        ? { [Key in keyof T]: Plain<T[Key]> }
        : T;

// Grafana's Prometheus plugin publishes no types of its own: these are the fields in its JSON.
interface Query {
  refId: string;
  expr: string;
  legendFormat?: string;
  format?: 'time_series' | 'table' | 'heatmap';
  instant?: boolean;
  range?: boolean;
}

type Defaults<Custom> = Omit<FieldConfigSource['defaults'], 'custom'> & { custom?: Partial<Custom> };

type Kind<Type extends string, Options, Custom> = Plain<Omit<Panel, 'type' | 'options' | 'targets' | 'fieldConfig' | 'datasource'>> & {
  type: Type;
  datasource: DataSourceRef;
  title: string;
  description: string;
  targets: Query[];
  options: Plain<Partial<Options>>;
  fieldConfig: { defaults: Plain<Defaults<Custom>>; overrides: Plain<FieldConfigSource['overrides']> };
};

type OurPanel =
  | Kind<'stat', stat.Options, never>
  | Kind<'timeseries', timeseries.Options, timeseries.FieldConfig>
  | Kind<'heatmap', heatmap.Options, heatmap.FieldConfig>
  | Kind<'table', table.Options, table.FieldConfig>
  | Plain<RowPanel>;

type Annotation = Plain<Omit<AnnotationQuery, 'target' | 'datasource'>> & { datasource: DataSourceRef; target: Query };

export type Board = Plain<Omit<Dashboard, 'panels' | 'annotations'>> & {
  annotations: { list: Annotation[] };
  panels: OurPanel[];
};
