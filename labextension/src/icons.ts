/** The icon: a pod and what goes into it. */
import { LabIcon } from '@jupyterlab/ui-components';

const SVG = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <g class="jp-icon3" fill="#616161">
    <path d="M12 2 3 7v10l9 5 9-5V7l-9-5zm0 2.3 6.6 3.6L12 11.6 5.4 7.9 12 4.3zM5 9.6l6 3.3v6.4l-6-3.3V9.6zm14 0V16l-6 3.3v-6.4l6-3.3z"/>
  </g>
</svg>`;

export const panelIcon = new LabIcon({ name: 'kubetorch-jupyter:panel', svgstr: SVG });
